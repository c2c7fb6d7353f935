"""The one error of flexspec and the table of its codes (`docs/errors.md` explains each)."""

from __future__ import annotations

CODES: dict[str, str] = {
    # writing a predicate
    "FS001": "a predicate's parameters have wrong names or kinds",
    "FS002": "`and` / `or` between expressions",
    "FS003": "`not` on an expression",
    "FS004": "`if` / `while` / a conditional on an expression",
    "FS005": "a chained comparison",
    "FS006": "an expression used as a plain Python number or sequence",
    "FS007": "the predicate does not return what it must",
    "FS008": "a call that cannot be traced",
    "FS009": "random or changing values in a predicate",
    "FS010": "an operator given operands it does not take",
    "FS011": "an unknown attribute or axis",
    # giving values
    "FS020": "a value is missing",
    "FS021": "an unknown name was given",
    "FS022": "a tensor has the wrong shape",
    "FS023": "a value has the wrong type",
    "FS024": "an index leaves its tensor",
    "FS025": "a parameter is outside its range",
    "FS026": "two uses of one name disagree",
    # sizes
    "FS030": "a length, batch, head count or block size that makes no sense",
    "FS031": "the batch or head count is needed",
    "FS032": "a canvas does not fit",
    "FS033": "an order does not fit",
    "FS034": "an integer overflows 64 bits",
    "FS035": "a division by zero",
    "FS036": "positions of queries or keys that make no sense",
    # running
    "FS040": "q, k and v do not fit each other",
    "FS041": "an unknown backend, target or precision",
    "FS042": "the backend cannot run this",
    # text and files
    "FS050": "the text cannot be parsed",
    "FS051": "an unknown pattern",
    "FS052": "a spec file is broken",
    "FS053": "a spec or text is too large or too deep",
    "FS054": "a file cannot be read or written",
}


class FlexSpecError(ValueError):
    """A user's mistake: a stable `code`, what was seen, where, and the fix.

    `code` is a key of `CODES`; `where` is the user's own line with a caret, or None.
    Several mistakes found at once are one error that lists them, with the first one's code.
    """

    def __init__(self, code: str, message: str, *, fix: str | None = None, where: str | None = None) -> None:
        self.code = code
        self.message = message
        self.fix = fix
        self.where = where
        super().__init__(self.describe())

    def describe(self) -> str:
        """The full text: `[code] message`, the line with its caret, the fix."""
        parts = [f"[{self.code}] {self.message}"]
        if self.where:
            parts.append(self.where)
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "\n".join(parts)

    @staticmethod
    def collect(errors: list[FlexSpecError]) -> FlexSpecError:
        """One error that reports all of `errors` (at least one), carrying the first one's code."""
        if len(errors) == 1:
            return errors[0]
        merged = FlexSpecError(errors[0].code, errors[0].message)
        text = f"{len(errors)} mistakes\n" + "\n".join(error.describe() for error in errors)
        merged.args = (text,)
        return merged


class FlexSpecWarning(UserWarning):
    """Something works, but not in the way that was likely meant."""


def choices(names: object) -> str:
    """Legal choices as text for an error: `a, b or c`."""
    items = [str(name) for name in names]  # type: ignore[attr-defined]
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" or {items[-1]}" if items else "(none)"
