"""The one contract that every door speaks: requests, answers, events and errors."""
