"""Languages as clients name them."""

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

from deployments.contract.languages import UnknownLanguageError, find
from tests.support.contract import parse, refusal_of


@pytest.mark.parametrize(
    "written", [str.lower, str.upper, str.title, lambda text: f" {text}\n"]
)
def test_whispers_own_codes_and_names_mean_what_they_mean_to_whisper(
    written: type[str],
) -> None:
    for name, code in [
        *TO_LANGUAGE_CODE.items(),
        *((code, code) for code in LANGUAGES),
    ]:
        found = find(written(name))
        assert (found.code, found.note) == (code, None)


@pytest.mark.parametrize("text", ["", "  ", "auto", "AUTO", "detect", "null", "und"])
def test_some_words_ask_for_detection(text: str) -> None:
    request = parse(language=text)
    assert request.language is None
    assert request == parse()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        # Tags of browsers, of operating systems and of Java.
        ("pt-BR", "pt"),
        ("pt_BR", "pt"),
        ("es-419", "es"),
        ("en-GB-oed", "en"),
        ("zh-TW", "zh"),
        ("zh-yue", "yue"),
        ("yue-HK", "yue"),
        ("tl-PH", "tl"),
        ("de_DE.UTF-8", "de"),
        ("de_DE@euro", "de"),
        ("no-nyn", "nn"),
        # ISO 639-2 for bibliographies and for terminology, and codes that were given up.
        ("deu", "de"),
        ("ger", "de"),
        ("POR", "pt"),
        ("zho", "zh"),
        ("chi", "zh"),
        ("cmn", "zh"),
        ("iw", "he"),
        ("in", "id"),
        ("jv", "jw"),
        ("jav", "jw"),
        # Names in their own language, with and without accents, and in other languages.
        ("português", "pt"),
        ("PORTUGUÊS", "pt"),
        ("portugues", "pt"),
        ("Brazilian Portuguese", "pt"),
        ("Deutsch", "de"),
        ("日本語", "ja"),
        ("中文", "zh"),
        ("普通话", "zh"),
        ("粵語", "yue"),
        ("Français", "fr"),
        ("francais", "fr"),
        ("Tiếng Việt", "vi"),
        ("русский", "ru"),
        ("العربية", "ar"),
        ("हिन्दी", "hi"),
        ("한국어", "ko"),
        ("inglês", "en"),
        ("allemand", "de"),
        ("ＥＮ", "en"),
    ],
)
def test_a_language_is_found_by_tag_code_or_name(text: str, code: str) -> None:
    found = find(text)
    assert (found.code, found.note) == (code, None)
    assert parse(language=text).whisper_options()["language"] == code


def test_every_language_is_found_by_its_three_letters_and_its_own_name() -> None:
    from langcodes import Language

    for code in LANGUAGES:
        language = Language.get({"jw": "jv"}.get(code, code), normalize=False)
        assert find(language.to_alpha3()).code == code
        assert find(language.to_alpha3(variant="B")).code == code
        assert find(language.autonym()).code == code


@pytest.mark.parametrize(
    ("text", "code", "note"),
    [
        ("nb", "no", "language 'nb' (Norwegian Bokmål) was taken as 'no' (Norwegian)"),
        ("nb-NO", "no", "language 'nb-NO' (Norwegian Bokmål) was taken as"),
        ("norsk bokmål", "no", "language 'norsk bokmål' (Norwegian Bokmål) was taken"),
        ("fil", "tl", "language 'fil' (Filipino) was taken as 'tl' (Tagalog)"),
        ("arb", "ar", "language 'arb' (Standard Arabic) was taken as 'ar' (Arabic)"),
        ("prs", "fa", "language 'prs' (Dari) was taken as 'fa' (Persian)"),
        ("zh-HK", "zh", "language 'zh-HK' was taken as 'zh' (Mandarin); for Cantonese"),
        ("zh_Hant", "zh", "language 'zh_Hant' was taken as 'zh'; Whisper chooses the"),
        ("sr-Latn", "sr", "language 'sr-Latn' was taken as 'sr'; Whisper chooses the"),
        (
            "Chinese (Cantonese)",
            "zh",
            "language 'Chinese (Cantonese)' was taken as 'zh' (Chinese)",
        ),
        ("Português (Brasil)", "pt", "language 'Português (Brasil)' was taken as 'pt'"),
        ("Simplified Chinese", "zh", "language 'Simplified Chinese' was taken as 'zh'"),
    ],
)
def test_a_language_that_is_not_quite_the_one_asked_for_is_told(
    text: str, code: str, note: str
) -> None:
    found = find(text)
    assert found.code == code
    assert found.note is not None
    assert found.note.startswith(note)
    assert parse(language=text).language_note == found.note


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("portugese", "did you mean 'portuguese'?"),
        ("germann", "did you mean 'german'?"),
        ("magyar nyelv", "did you mean 'magyar'?"),
        ("jp", "did you mean 'ja'?"),
        ("cz-CZ", "did you mean 'cs'?"),
        ("gsw", "Whisper does not know Swiss German; the nearest is 'de'"),
        ("arz", "Whisper does not know Egyptian Arabic; the nearest is 'ar'"),
        ("wuu", "Whisper does not know Wu Chinese; the nearest is 'zh'"),
        ("ku", "Whisper does not know Kurdish"),
        ("kurdish", "Whisper does not know Kurdish"),
        ("sh", "'sh' stands for any of 'sr', 'hr' or 'bs'"),
        ("hbs-Latn", "'hbs' stands for any of 'sr', 'hr' or 'bs'"),
        # A code, although it is the Maori name of Lao.
        ("rao", "Whisper does not know Rao"),
        ("und-Latn", ""),
        ("und-419", ""),
        ("xyz", ""),
        ("x" * 100_000, ""),
        ("fr-", ""),
        ("en;q=0.9", ""),
    ],
)
def test_what_names_no_language_of_whisper_is_refused_with_a_hint(
    text: str, hint: str
) -> None:
    with pytest.raises(UnknownLanguageError) as caught:
        find(text)
    assert str(caught.value) == hint


@settings(max_examples=150, deadline=None)
@example("aa_AAA_00A")
@example("aa_AAA_000")
@given(
    st.from_regex(r"[a-z]{2,3}([-_][A-Za-z0-9]{1,8}){0,3}", fullmatch=True)
    | st.text(max_size=30)
)
def test_any_text_is_a_language_of_whisper_or_is_refused(text: str) -> None:
    try:
        assert find(text).code in LANGUAGES
    except UnknownLanguageError as error:
        assert len(str(error)) < 200


def test_a_refusal_gives_the_rule_and_the_hint() -> None:
    rule = "Invalid language: must be a language code, tag or name, or null to detect"
    assert refusal_of(language="xyz") == rule
    assert refusal_of(language="portugese") == f"{rule}; did you mean 'portuguese'?"


def test_the_contract_reads_names_of_languages_only_when_a_request_needs_them() -> None:
    code = """
import sys
from deployments.contract.request import parse_request

parse_request({"audio": "x", "language": "Portuguese"})
parse_request({"audio": "x", "language": ""})
assert "langcodes" not in sys.modules
parse_request({"audio": "x", "language": "pt-BR"})
assert "langcodes" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
