"""Languages as clients name them: codes, tags and names in any of Whisper's languages.

Whisper's own codes and names come first and mean what they mean to Whisper. The package langcodes
knows the others; it is imported when one is met, because most requests need none.
"""

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments import catalog

if TYPE_CHECKING:
    from langcodes import Language

# Words that ask Whisper to detect the language.
_DETECT = ("", "auto", "detect", "none", "null", "und")
# Longer text names no language, and is not compared with thousands of names.
_LONGEST = 60
# "pt-BR", "zh_Hant", "de_DE.UTF-8": the part behind the dot is a character set, as in $LANG.
_TAG = re.compile(r"([a-z]{2,3}(?:-[a-z0-9]{1,8})*)(?:[.@].*)?", re.ASCII)
# "Portuguese (Brazil)"
_IN_PARENTHESES = re.compile(r"\s*\([^()]*\)$")
# What langcodes calls Whisper's languages where Whisper uses a code of its own.
_TO_STANDARD = {"jw": "jv"}
# Where Whisper's vocabulary has another code for what a tag names.
_TO_WHISPER = {"jv": "jw", "nb": "no", "fil": "tl"}
# Codes that name the same language as Whisper's code does, so no note is needed.
_SAME_NAMED = {"cmn"}
# Tags whose standard form is one language of several that they may mean.
_AMBIGUOUS = {"sh": "'sr', 'hr' or 'bs'", "hbs": "'sr', 'hr' or 'bs'"}
# Where "zh" is commonly written for Cantonese, which is "yue" to Whisper.
_CANTONESE_REGIONS = ("HK", "MO")
# Common names that langcodes does not have for the language or not for it alone.
_OTHER_NAMES = {
    **dict.fromkeys(
        ("普通话", "普通話", "国语", "國語", "汉语", "漢語", "华语", "華語"), "zh"
    ),
    **dict.fromkeys(("粤语", "广东话", "廣東話"), "yue"),
    "farsi": "fa",
    "bangla": "bn",
    "castellano": "es",
}
# How alike two names have to be for one to be suggested in place of the other, 0 to 1.
_SIMILAR = 0.8
# Up to this distance of langcodes a speaker of one language understands the other.
_NEAR = 10


@dataclass(frozen=True)
class Found:
    """What a client's text stands for.

    code: of Whisper's language
    note: a sentence for the caller where the code is not quite what the text asks for
    """

    code: str
    note: str | None = None


class UnknownLanguageError(ValueError):
    """The text names no language that Whisper knows. `str(error)` may say what does, or nothing."""


def asks_to_detect(text: str) -> bool:
    return _normalized(text) in _DETECT


def find(text: str) -> Found:
    """The language that a client means. Raises UnknownLanguageError."""
    name = _normalized(text)
    code = catalog.language_code(name)
    return Found(code) if code else _find_elsewhere(text.strip())


@functools.lru_cache(maxsize=1000)
def _find_elsewhere(text: str) -> Found:
    name = _normalized(text)
    # The tries of language_data fail on control characters.
    if len(text) > _LONGEST or not name.isprintable():
        raise UnknownLanguageError
    # Short names of languages are codes of other ones, so a text that is a code is no name.
    tag = _tag_in(name)
    found = _by_tag(tag, text) if tag else _by_name(name, text)
    if found is None and tag is None:
        tag = _tag_of_name(name)
        found = _by_tag(tag, text) if tag else None
    if found is None:
        raise UnknownLanguageError(_suggestion(name, tag))
    return found


def _tag_in(name: str) -> str | None:
    """The tag that the text is, if its form is that of one."""
    match = _TAG.fullmatch(name.replace("_", "-"))
    return match[1] if match else None


def _by_name(name: str, text: str) -> Found | None:
    code = _names().get(name)
    if code is not None:
        return Found(code)
    code = _names().get(_IN_PARENTHESES.sub("", name))
    if code is None:
        return None
    return Found(
        code, f"language '{text}' was taken as '{code}' ({_english_name(code)})"
    )


def _by_tag(tag: str, text: str) -> Found | None:
    """The language of an IETF tag or an ISO 639 code of three letters.

    text: what the caller wrote
    """
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    try:
        given, standard = Language.get(tag, normalize=False), Language.get(tag)
    except LanguageTagError:
        return None
    if given.language in _AMBIGUOUS:
        return None
    official = given.language in catalog.LANGUAGES and not given.extlangs
    used = given if official else standard
    code = _whisper_code(used) or _whisper_code(standard.prefer_macrolanguage())
    if code is None:
        return None
    return Found(code, _note(text, given, used, code))


def _whisper_code(language: "Language") -> str | None:
    code = language.language or ""
    code = _TO_WHISPER.get(code, code)
    return code if code in catalog.LANGUAGES else None


def _note(text: str, given: "Language", used: "Language", code: str) -> str | None:
    asked = given.language_name() if given.is_valid() else used.language_name()
    if given.extlangs:
        asked = used.language_name()
    if asked != _english_name(code) and used.language not in _SAME_NAMED:
        return (
            f"language '{text}' ({asked}) was taken as '{code}' ({_english_name(code)})"
        )
    if code == "zh" and used.territory in _CANTONESE_REGIONS:
        return (
            f"language '{text}' was taken as 'zh' (Mandarin);"
            " for Cantonese give 'yue' to a model that knows it"
        )
    if used.script:
        return f"language '{text}' was taken as '{code}'; Whisper chooses the script itself"
    return None


def _tag_of_name(name: str) -> str | None:
    """The tag of a language, or of its use in a region, that Whisper does not name.

    Such as "Filipino", "norsk bokmål", "Brazilian Portuguese", "Simplified Chinese".
    """
    from langcodes import Language

    for names_in in ("en", "und"):
        try:
            language = Language.find(name, names_in)
        except LookupError:
            continue
        # langcodes also finds names that only begin like this one.
        exact = (language.language_name(), language.autonym())
        regional = names_in == "en" and (language.territory or language.script)
        if regional or name in map(_normalized, exact):
            return language.to_tag()
    return None


@functools.cache
def _names() -> dict[str, str]:
    """Whisper's code by the name of its language in each of Whisper's languages.

    Names that are written with accents are also found without them. None of the names stands for
    two of Whisper's languages.
    """
    names: dict[str, str] = {}
    for code, name in _all_names():
        names.setdefault(name, code)
    for name, code in list(names.items()):
        plain = unicodedata.normalize("NFD", name).encode("ascii", "ignore").decode()
        # Writing systems other than Latin lose more than accents.
        if len(plain) >= len(name):
            names.setdefault(plain, code)
    return names


def _all_names() -> Iterator[tuple[str, str]]:
    for name, code in (catalog.LANGUAGE_CODES | _OTHER_NAMES).items():
        yield code, name
    for code in catalog.LANGUAGES:
        language = _standard(code)
        for other in catalog.LANGUAGES:
            yield code, _normalized(language.language_name(_standard(other)))


def _standard(code: str) -> "Language":
    from langcodes import Language

    return Language.get(_TO_STANDARD.get(code, code), normalize=False)


def _english_name(code: str) -> str:
    return _standard(code).language_name()


def _suggestion(name: str, tag: str | None) -> str:
    """What a caller may have meant by a name or tag that Whisper does not know; or nothing."""
    if tag is not None and (hint := _hint_of_tag(tag)):
        return hint
    own_names = [_normalized(_standard(code).autonym()) for code in catalog.LANGUAGES]
    names = [*catalog.LANGUAGE_CODES, *own_names]
    close = difflib.get_close_matches(name, names, n=1, cutoff=_SIMILAR)
    # "Castilian Spanish", "Mandarin please"
    close += [word for word in reversed(name.split()) if word in names]
    return f"did you mean '{close[0]}'?" if close else ""


def _hint_of_tag(tag: str) -> str:
    from langcodes import Language, closest_match
    from langcodes.tag_parser import LanguageTagError

    try:
        given, standard = Language.get(tag, normalize=False), Language.get(tag)
    except LanguageTagError:
        return ""
    primary = given.language or ""
    if not primary:
        return ""
    if primary in _AMBIGUOUS:
        return f"'{primary}' stands for any of {_AMBIGUOUS[primary]}"
    # By the language alone, because `closest_match` cannot read every tag that it has standardized.
    near, _ = closest_match(primary, list(catalog.LANGUAGES), max_distance=_NEAR)
    if standard.is_valid() and near != "und":
        return (
            f"Whisper does not know {standard.language_name()}; the nearest is '{near}'"
        )
    named = f"Whisper does not know {standard.language_name()}"
    parts = [named] if standard.is_valid() else []
    if spoken := _language_of_country(primary):
        parts.append(f"did you mean '{spoken}'?")
    return "; ".join(parts)


def _language_of_country(code: str) -> str | None:
    """Some write the code of a country: "jp" for Japanese."""
    from langcodes import Language

    # AA, QM to QZ, XA to XZ and ZZ are no countries (ISO 3166: for private use).
    if len(code) != 2 or re.fullmatch("aa|q[m-z]|x.|zz", code):
        return None
    country = Language.get(f"und-{code}")
    return _whisper_code(country.maximize()) if country.is_valid() else None


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
