"""The error of a source that can't be compiled."""

__all__ = ["CompileException"]


class CompileException(Exception):
    """The compiler refused a source."""

    def __init__(self, msg, source, name, options, backend="nvrtc"):
        super().__init__(msg)
        self.source, self.name, self.options, self.backend = source, name, options, backend
