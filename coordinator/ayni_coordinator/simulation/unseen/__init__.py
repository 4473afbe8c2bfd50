"""Leave one site out: a federation trains without it, and ways to fit the outcome to that site are compared.

`federation.py` trains, `site.py` is what a way is given, `ways.py` names them, `run.py` makes the rows.
"""
