"""The official Whisper checkpoints and languages as plain data. Nothing heavy is imported.

A test holds every table equal to the installed `whisper` package.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class OfficialModel:
    """One checkpoint that OpenAI published.

    name: the canonical name, used for the deployment and in answers
    sha256: of the checkpoint file; part of its address
    parameters_m: millions of parameters, as upstream quotes them
    vram_gb: GB (1e9 bytes) of a GPU for weights in fp16, the engine's workspace and the slots of 16
        windows or more; computed from the model's dimensions, not measured
    multilingual: whether it knows any language but English
    num_languages: languages that its vocabulary has a token for; large-v3 added Cantonese
    translates: whether it was trained to translate into English
    aliases: other official names of the same file
    file: the name of the file, where it is not the canonical name with `.pt`
    """

    name: str
    sha256: str
    parameters_m: int
    vram_gb: float
    multilingual: bool = True
    num_languages: int = 99
    translates: bool = True
    aliases: tuple[str, ...] = ()
    file: str = ""

    @property
    def url(self) -> str:
        folder = "https://openaipublic.azureedge.net/main/whisper/models"
        return f"{folder}/{self.sha256}/{self.filename}"

    @property
    def filename(self) -> str:
        return self.file or f"{self.name}.pt"

    @property
    def n_vocab(self) -> int:
        """Token ids run from 0 to `n_vocab - 1`."""
        return 51766 + self.num_languages if self.multilingual else 51864


_OFFICIAL = (
    OfficialModel(
        name="tiny.en",
        sha256="d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03",
        parameters_m=39,
        vram_gb=2.0,
        multilingual=False,
        translates=False,
    ),
    OfficialModel(
        name="tiny",
        sha256="65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9",
        parameters_m=39,
        vram_gb=2.0,
    ),
    OfficialModel(
        name="base.en",
        sha256="25a8566e1d0c1e2231d1c762132cd20e0f96a85d16145c3a00adf5d1ac670ead",
        parameters_m=74,
        vram_gb=2.5,
        multilingual=False,
        translates=False,
    ),
    OfficialModel(
        name="base",
        sha256="ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e",
        parameters_m=74,
        vram_gb=2.5,
    ),
    OfficialModel(
        name="small.en",
        sha256="f953ad0fd29cacd07d5a9eda5624af0f6bcf2258be67c92b79389873d91e0872",
        parameters_m=244,
        vram_gb=4.5,
        multilingual=False,
        translates=False,
    ),
    OfficialModel(
        name="small",
        sha256="9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794",
        parameters_m=244,
        vram_gb=4.5,
    ),
    OfficialModel(
        name="medium.en",
        sha256="d7440d1dc186f76616474e0ff0b3b6b879abc9d1a4926b7adfa41db2d497ab4f",
        parameters_m=769,
        vram_gb=10.0,
        multilingual=False,
        translates=False,
    ),
    OfficialModel(
        name="medium",
        sha256="345ae4da62f9b3d59415adc60127b97c714f32e89e936602e85993674d08dcb1",
        parameters_m=769,
        vram_gb=10.0,
    ),
    OfficialModel(
        name="large-v1",
        sha256="e4b87e7e0bf463eb8e6956e646f1e277e901512310def2c24bf0e11bd3c28e9a",
        parameters_m=1550,
        vram_gb=15.0,
    ),
    OfficialModel(
        name="large-v2",
        sha256="81f7c96c852ee8fc832187b0132e569d6c3065a3252ed18e56effd0b6a73e524",
        parameters_m=1550,
        vram_gb=15.0,
    ),
    OfficialModel(
        name="large-v3",
        sha256="e5b1a55b89c1367dacf97e3e19bfd829a01529dbfdeefa8caeb59b3f1b81dadb",
        parameters_m=1550,
        vram_gb=15.0,
        num_languages=100,
        aliases=("large",),
    ),
    OfficialModel(
        name="turbo",
        sha256="aff26ae408abcba5fbf8813c21e62b0941638c5f6eebfb145be0c9839262a19a",
        parameters_m=809,
        vram_gb=6.0,
        num_languages=100,
        translates=False,
        aliases=("large-v3-turbo",),
        file="large-v3-turbo.pt",
    ),
)

MODELS: dict[str, OfficialModel] = {model.name: model for model in _OFFICIAL}
ALIASES: dict[str, str] = {
    alias: model.name for model in _OFFICIAL for alias in model.aliases
}


def find(name: str) -> OfficialModel | None:
    """The official model of this name or alias; None if there is none."""
    return MODELS.get(ALIASES.get(name, name))


def plain_name(name: str) -> str:
    """A model's name without what is written around it: `openai/whisper-large-v3-turbo`, `Base`."""
    return name.strip().lower().removeprefix("openai/").removeprefix("whisper-")


# In the order of the language tokens in the vocabulary.
LANGUAGES: dict[str, str] = {
    "en": "english",
    "zh": "chinese",
    "de": "german",
    "es": "spanish",
    "ru": "russian",
    "ko": "korean",
    "fr": "french",
    "ja": "japanese",
    "pt": "portuguese",
    "tr": "turkish",
    "pl": "polish",
    "ca": "catalan",
    "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish",
    "it": "italian",
    "id": "indonesian",
    "hi": "hindi",
    "fi": "finnish",
    "vi": "vietnamese",
    "he": "hebrew",
    "uk": "ukrainian",
    "el": "greek",
    "ms": "malay",
    "cs": "czech",
    "ro": "romanian",
    "da": "danish",
    "hu": "hungarian",
    "ta": "tamil",
    "no": "norwegian",
    "th": "thai",
    "ur": "urdu",
    "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian",
    "la": "latin",
    "mi": "maori",
    "ml": "malayalam",
    "cy": "welsh",
    "sk": "slovak",
    "te": "telugu",
    "fa": "persian",
    "lv": "latvian",
    "bn": "bengali",
    "sr": "serbian",
    "az": "azerbaijani",
    "sl": "slovenian",
    "kn": "kannada",
    "et": "estonian",
    "mk": "macedonian",
    "br": "breton",
    "eu": "basque",
    "is": "icelandic",
    "hy": "armenian",
    "ne": "nepali",
    "mn": "mongolian",
    "bs": "bosnian",
    "kk": "kazakh",
    "sq": "albanian",
    "sw": "swahili",
    "gl": "galician",
    "mr": "marathi",
    "pa": "punjabi",
    "si": "sinhala",
    "km": "khmer",
    "sn": "shona",
    "yo": "yoruba",
    "so": "somali",
    "af": "afrikaans",
    "oc": "occitan",
    "ka": "georgian",
    "be": "belarusian",
    "tg": "tajik",
    "sd": "sindhi",
    "gu": "gujarati",
    "am": "amharic",
    "yi": "yiddish",
    "lo": "lao",
    "uz": "uzbek",
    "fo": "faroese",
    "ht": "haitian creole",
    "ps": "pashto",
    "tk": "turkmen",
    "nn": "nynorsk",
    "mt": "maltese",
    "sa": "sanskrit",
    "lb": "luxembourgish",
    "my": "myanmar",
    "bo": "tibetan",
    "tl": "tagalog",
    "mg": "malagasy",
    "as": "assamese",
    "tt": "tatar",
    "haw": "hawaiian",
    "ln": "lingala",
    "ha": "hausa",
    "ba": "bashkir",
    "jw": "javanese",
    "su": "sundanese",
    "yue": "cantonese",
}

_OTHER_LANGUAGE_NAMES = {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
}

LANGUAGE_CODES: dict[str, str] = {
    name: code for code, name in LANGUAGES.items()
} | _OTHER_LANGUAGE_NAMES


def language_code(language: str) -> str | None:
    """The code of a language that is given by code or English name, in any case.

    None if Whisper does not know the language.
    """
    language = language.lower()
    return language if language in LANGUAGES else LANGUAGE_CODES.get(language)
