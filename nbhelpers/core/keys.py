"""One thing spelled in two ways is one thing: every text key of a table or a folder name goes
through here before it is compared, counted or split by.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal

from nbhelpers.core.errors import TableError

MISSING_WORDS = frozenset(
    "nan na n/a n.a. n.d. k.a. <na> null none nil nat missing unknown unbekannt undefined blank "
    "(blank) #n/a #na #nv #n/d".split()
) | {"not available", "keine angabe"}
# what a spreadsheet writes in place of a value (#REF!, #WERT!), and signs alone but for + and *
_NOTHING = re.compile(r"#\S+[!?]|[-._?]+|/+")
LARGEST_SHOWN = 1e11  # from here on a spreadsheet shows 8.64691E+17 instead of the digits
ROUNDED = 12  # digits that are left of a number with dust of rounding,
DUST = 16  # which has as many signs and more
KEPT_DIGITS = 15  # that a spreadsheet keeps of a long number
MOST_NAMED = 5  # of pairs in a message
# digits, E and digits alone are a name (clone 1E2) and no number
_NUMBER = re.compile(
    r"[+-]?(?:0|[1-9]\d*)?(?:\.\d*)?(?:(?<=\.)\d*e[+-]?\d+|(?<=\.\d)\d*e[+-]?\d+|e[+-]\d+)?", re.I
)
_DASH = r"[\s_\-]+"
_ONE_SIGN = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
    | dict.fromkeys("\u2018\u2019\u02bc", "'")
    | dict.fromkeys("\u201c\u201d", '"')
)
_BETWEEN_DIGITS = re.compile(rf"(?<=\d){_DASH}(?=\d)")  # 1-1 is not 11
_BETWEEN_WORDS = re.compile(rf"(?<=[^\W_]){_DASH}(?=[^\W_])|\s|^_+|_+$")  # but CD4- is not CD4
_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


def key_of(text: object) -> str:
    """The one spelling of a key: no white space around it or twice, no invisible characters, one
    Unicode form (NFKC, but for raised and lowered digits), one dash, and numbers without a point
    and zeros at their end (``1.0`` is ``1``) and without dust of rounding
    (``0.30000000000000004`` is ``0.3``).
    """
    signs = unicodedata.normalize("NFC", "".join(map(_one_form, str(text))))
    key = " ".join(signs.translate(_ONE_SIGN).split())
    if not _is_number(key):
        return key
    if not key.strip("+-0123456789"):
        return key.lstrip("+")  # whole numbers keep all their digits
    power = "e" in key.lower()
    whole, _, rest = key.partition(".")
    if not (power or rest.strip("0")) and whole.strip("+-"):
        return whole.lstrip("+")
    dust = len(rest) + len(whole) >= DUST
    if (power or dust or not whole.strip("+-")) and (value := _value(key)) is not None:
        return format(Decimal(f"{value:.{ROUNDED}g}"), "f")
    return key


def _value(key: str) -> float | None:
    """The value of a number; None where it is too large or too small for the computer."""
    value = float(key)
    if not math.isfinite(value) or (value == 0 and key.lower().partition("e")[0].strip("+-.0")):
        return None
    return value


def _is_number(key: str) -> bool:
    return bool(_NUMBER.fullmatch(key)) and any(sign.isdecimal() for sign in key)


def _one_form(sign: str) -> str:
    kind = unicodedata.category(sign)
    if kind == "Cc":
        return " "
    if kind == "Cf" or "\ufe00" <= sign <= "\ufe0f":  # not to be seen
        return ""
    if kind == "Nd":
        return str(unicodedata.decimal(sign))
    if unicodedata.decomposition(sign).startswith(("<super>", "<sub>")):
        return sign
    return unicodedata.normalize("NFKC", sign)


def bare_key(text: object) -> str:
    """What is left of a key without case, leading zeros, spaces, - and _: two keys with one rest
    may be one thing.
    """
    key = key_of(text)
    if _is_number(key):
        return repr(_value(key) or key) if "." in key else key
    bare = _BETWEEN_WORDS.sub("", _BETWEEN_DIGITS.sub("/", key.casefold()))
    return _LEADING_ZEROS.sub("", bare)


def one_spelling(
    values: Iterable[object], column: str, where: object, *, allowed: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """The keys of one column in one spelling each, and a sentence for each two spellings that were
    joined. Empty texts stay empty.

    ``column`` is what the keys are ("group"), ``where`` the file they are from; ``allowed`` are
    words that mean something there though they often stand for a missing value, in small letters.
    Raises TableError for keys that differ only in case, leading zeros, spaces, - or _, for a
    missing value that is written as a word, and for ids that lost their digits in a spreadsheet.
    """
    written = [str(value) for value in values]
    keys = {text: key_of(text) for text in dict.fromkeys(written)}
    _check_missing(set(keys.values()), column, where, allowed)
    _check_digits(keys, column, where)
    _check_alike(sorted(set(keys.values())), column, where)
    spellings: dict[str, list[str]] = {}
    for text, key in keys.items():
        spellings.setdefault(key, []).append(text)
    joined = [
        f"{column} {key!r} is also written {', '.join(sorted(map(repr, set(texts) - {key})))}"
        for key, texts in sorted(spellings.items())
        if len(texts) > 1
    ]
    return [keys[text] for text in written], joined


def _check_missing(
    keys: Collection[str], column: str, where: object, allowed: Collection[str]
) -> None:
    words = sorted(
        key
        for key in keys
        if key.casefold() in MISSING_WORDS - set(allowed) or _NOTHING.fullmatch(key)
    )
    if words:
        raise TableError(
            where,
            f"a {column} is {', '.join(map(repr, words))}, a word for a missing value: all that is "
            "missing would count as one thing.",
            f"Leave these rows out, or give each its {column}; if the word is a name, use another.",
        )


def _check_digits(keys: Mapping[str, str], column: str, where: object) -> None:
    """Whether a spreadsheet has cut long ids (written text to key): their digits cannot be had
    back.
    """
    shown = {text.strip().replace(",", ".") for text in keys if "e" in text.lower()}
    lost = [one for one in shown if _is_number(one) and abs(float(one)) >= LARGEST_SHOWN]
    long = [int(key) for key in {*keys.values()} if re.fullmatch(r"\d{16,40}", key)]
    # one id in ten ends in one zero by chance, and every second one is an even number
    ends = sum(len(str(number)) - KEPT_DIGITS for number in long)
    if ends >= 6 and not any(str(number)[KEPT_DIGITS:].strip("0") for number in long):
        lost += map(str, long)
    steps = sum(max(0, number.bit_length() - 53) for number in long)
    if steps >= 14 and all(int(float(number)) == number for number in long):
        lost += map(str, long)
    if lost:
        raise TableError(
            where,
            f"the {column} {lost[0]} has lost its digits, as long numbers do in a spreadsheet: "
            "different ids may have become one.",
            "Export the table again with this column as text.",
        )


def _check_alike(keys: Iterable[str], column: str, where: object) -> None:
    """Whether two keys differ only in what people write in one way and another."""
    first: dict[str, str] = {}
    pairs = []
    for key in keys:
        other = first.setdefault(bare_key(key), key)
        if other != key:
            pairs.append(f"{other!r} and {key!r}")
    if pairs:
        more = f", and {len(pairs) - MOST_NAMED} more pairs" if len(pairs) > MOST_NAMED else ""
        raise TableError(
            where,
            f"the {column} {'; '.join(pairs[:MOST_NAMED])}{more} differ only in case, "
            "zeros, spaces, - or _.",
            "Write each in one way; if they are two things, give them names that differ more.",
        )
