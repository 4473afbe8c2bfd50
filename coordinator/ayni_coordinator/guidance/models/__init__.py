"""The foundation models that can be asked, one module each: `guidance.source` "lite-medsam" is `lite_medsam`.

A module has `KINDS`, the kinds of task that it answers for, and `open_model(settings, kind, home)`, which gives a
`Source` (ayni_coordinator.guidance.source). `home` is the coordinator's folder: what is made once goes below it.
"""
