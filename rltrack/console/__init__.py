"""What the command line prints, one module for each subject; `tables` has the shared helpers."""
