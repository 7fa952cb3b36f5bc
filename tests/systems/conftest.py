"""The toy system registers itself where it is imported: only the processes that test it may do so."""

collect_ignore = ["toy_system.py"]
