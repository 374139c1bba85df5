"""Whether the engine is right on a GPU and how fast it is there, from one prepared folder; see README.md."""
