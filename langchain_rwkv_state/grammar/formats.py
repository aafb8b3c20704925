"""Writes JSON schema's formats as patterns: each match is valid to its checkers and to pydantic.

It knows neither schemas nor grammars. Standards allow more than programs take: years that no
calendar of Python has, 25 digits of a second, months of no certain length. These are narrower:
years 1000 to 2999, microseconds, durations in weeks or in days, hours, minutes, seconds.
"""

from __future__ import annotations

_YEAR = "[12][0-9]{3}"
_LEAP = "(?:[12][0-9](?:0[48]|[2468][048]|[13579][26])|(?:12|16|20|24|28)00)"
_DAY = "(?:0[1-9]|1[0-9]|2[0-8])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-{_DAY}|(?:0[13-9]|1[0-2])-(?:29|30)|"
    f"(?:0[13578]|1[02])-31)|{_LEAP}-02-29)"
)
_HOURS = "(?:[01][0-9]|2[0-3])"
_TIME = f"{_HOURS}:[0-5][0-9]:[0-5][0-9](?:[.][0-9]{{1,6}})?(?:Z|[+-]{_HOURS}:[0-5][0-9])"
_N = "[0-9]{1,4}"
_PART = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"

FORMAT_PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": f"^P(?:{_N}W|{_N}D(?:{_PART})?|{_PART})$",
}
"""By format, for whole texts, in a syntax that Python and Rust read alike."""
