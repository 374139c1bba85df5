"""The phases of a measurement. Each module has a function `measure(run)`."""
