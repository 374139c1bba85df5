"""What is measured, a module for each phase with a function `measure(run)`."""
