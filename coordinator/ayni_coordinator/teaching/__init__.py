"""The teacher of a task with `dual_kd`: trained here on labelled images (or imported), sent to each site once."""
