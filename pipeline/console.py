"""What commands draw on: rich's console, whose reader may go away."""

from rich.console import Console


class CommandConsole(Console):
    """A console that leaves a lost reader to the outermost frame: rich ends the process with 1."""

    def on_broken_pipe(self) -> None:
        """Raise the error again; what is drawn on stderr is no reason to end, and is left out."""
        if not self.stderr:
            raise  # rich calls from where it is handled
        self.quiet = True
