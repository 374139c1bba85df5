"""How many windows take a step together: fewer for a while after a step of several has failed."""

CALM_TURNS = 200


class BatchLimit:
    """The most windows of one step.

    A failure of several windows together may be the fault of one of them or of their number, for
    instance when memory is short. So the failed step is repeated with half of them, and so on. If
    a window fails alone, the fault was its own, and the limit is lifted. Otherwise the limit
    doubles after `calm_turns` turns without a failure, because memory may be free again.
    """

    def __init__(self, windows: int, calm_turns: int = CALM_TURNS) -> None:
        self.windows = windows
        self.calm_turns = calm_turns
        self._most = windows
        self._calm = 0

    def failed(self, windows: int) -> None:
        """A step of this many windows has failed."""
        if windows > 1:
            self.windows, self._calm = windows // 2, 0
        else:
            self.windows = self._most

    def turn_ended(self) -> None:
        """All windows have taken their step."""
        self._calm += 1
        if self.windows < self._most and self._calm >= self.calm_turns:
            self.windows, self._calm = self.windows * 2, 0
