"""Every demuxer of PyAV is either allowed or left out for a reason."""

import av
import numpy as np
import pytest

from deployments.audio import SAMPLE_RATE
from deployments.audio.demuxers import DEMUXERS
from deployments.contract.errors import InvalidAudioError
from tests.audio.test_decode import decode, encode, pitch, tone

LEFT_OUT = {
    "opens other files, hosts or devices": (
        "alsa concat fbdev hls image2 kmsgrab lavfi mlv oss rtp rtsp sap sdp tty video4linux2"
        " vobsub webm_dash_manifest x11grab"
    ),
    "has no header to know it by": (
        "codec2raw data f32be f32le f64be f64le s16be s16le s24be s24le s32be s32le s8 u16be u16le"
        " u24be u24le u32be u32le u8 vidc"
    ),
    "has had errors by which a file takes the process over, and is hardly ever sent": (
        "iamf"
    ),
    "pictures": (
        "alias_pix apng bmp_pipe brender_pix cri_pipe dds_pipe dpx_pipe exr_pipe fits frm gem_pipe"
        " gif gif_pipe hdr_pipe ico image2pipe j2k_pipe jpeg_pipe jpegls_pipe jpegxl_anim"
        " jpegxl_pipe jpegxs_pipe msp pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe pgmyuv_pipe"
        " pgx_pipe phm_pipe photocd_pipe pictor_pipe png_pipe ppm_pipe psd_pipe qdraw_pipe qoi_pipe"
        " sgi_pipe sunrast_pipe svg_pipe tiff_pipe txd vbn_pipe webp_anim webp_pipe xbm_pipe"
        " xpm_pipe xwd_pipe"
    ),
    "video or raw packets without sound": (
        "anm apv av1 avs2 avs3 bitpacked cavsvideo cdg cine dfa dirac dnxhd evc filmstrip flic h261"
        " h263 h264 hevc ingenient ipu iv8 ivf m4v mjpeg mjpeg_2000 mpegtsraw mpegvideo mpjpeg nc"
        " obu pdv rawvideo sdr2 ser v210 v210x vc1 vc1test vvc yuv4mpegpipe"
    ),
    "text and subtitles": (
        "adf aqtitle ass bin dvbsub dvbtxt ffmetadata idf jacosub lrc mcc microdvd mpl2 mpsub pjs"
        " rcwt realtext sami sbg scc srt stl subviewer subviewer1 sup tedcaptions vplayer webvtt"
        " xbin"
    ),
}
REFUSED = " ".join(LEFT_OUT.values()).split()
# Of one of the pinned PyAV builds only.
NEWER = {"webp_anim"}


def available() -> dict[str, set[str]]:
    """All names of each demuxer, by each of them and by the list of all."""
    names = []
    for name in av.formats_available:
        try:
            av.ContainerFormat(name, "r")
        except ValueError:  # a muxer
            continue
        names.append(name)
    found = {name: set(name.split(",")) for name in names}
    for aliases in [found[name] for name in names if "," in name]:
        found |= dict.fromkeys(aliases & found.keys(), aliases)
    return found


def test_every_demuxer_is_allowed_or_left_out_for_a_reason() -> None:
    for name, names in available().items():
        assert bool(names & set(DEMUXERS)) != bool(names & set(REFUSED)), name


def test_every_name_in_the_lists_is_a_demuxer_and_stands_there_once() -> None:
    known = set().union(*available().values())
    assert set(DEMUXERS) | set(REFUSED) <= known | NEWER
    assert len(DEMUXERS) == len(set(DEMUXERS))
    assert len(REFUSED) == len(set(REFUSED))


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("adx", "adpcm_adx"),
        ("au", "pcm_s16be"),
        ("avi", "adpcm_ms"),
        ("caf", "alac"),
        ("flv", "aac"),
        ("ircam", "pcm_s16le"),
        ("mmf", "adpcm_yamaha"),
        ("mpegts", "mp2"),
        ("nut", "flac"),
        ("sox", "pcm_s32le"),
        ("tta", "tta"),
        ("voc", "pcm_s16le"),
        ("w64", "pcm_f32le"),
        ("wtv", "mp2"),
        ("wv", "wavpack"),
    ],
)
def test_a_container_that_is_seldom_sent_is_decoded(container: str, codec: str) -> None:
    rate = 8_000 if container == "mmf" else 48_000
    samples = decode(encode(container, codec, 440, rate=rate))
    assert pitch(samples[800:]) == pytest.approx(440, abs=3)


def iff(samples: bytes, rate: int) -> bytes:
    """An 8SVX file of the Amiga: signed 8-bit samples."""
    header = (
        len(samples).to_bytes(4, "big")
        + bytes(8)
        + rate.to_bytes(2, "big")
        + b"\1\0"
        + (1 << 16).to_bytes(4, "big")
    )
    chunks = b"8SVX" + b"VHDR" + (20).to_bytes(4, "big") + header
    chunks += b"BODY" + len(samples).to_bytes(4, "big") + samples
    return b"FORM" + len(chunks).to_bytes(4, "big") + chunks


def qoa(frames: int) -> bytes:
    """A QOA file of one channel at 16 kHz whose every frame of 20 samples holds the same slice."""
    count = 20 * frames
    data = b"qoaf" + count.to_bytes(4, "big")
    while frames:
        slices = min(frames, 256)
        size = 8 + 16 + 8 * slices
        data += b"\1" + SAMPLE_RATE.to_bytes(3, "big")
        data += (20 * slices).to_bytes(2, "big") + size.to_bytes(2, "big")
        data += bytes(16) + slices * (0x8492_4924_9249_2492).to_bytes(8, "big")
        frames -= slices
    return data


def test_the_amigas_files_are_decoded() -> None:
    samples = (tone(440) // 256).astype(np.int8).tobytes()
    assert pitch(decode(iff(samples, SAMPLE_RATE))) == pytest.approx(440, abs=2)


def test_qoa_is_decoded() -> None:
    samples = decode(qoa(800))
    assert len(samples) == SAMPLE_RATE
    assert samples.any()


def test_raw_samples_are_refused_in_words_that_say_what_to_do() -> None:
    with pytest.raises(InvalidAudioError) as caught:
        decode(tone(440).tobytes())
    assert str(caught.value).endswith(
        "Raw audio without a header has to be put into a container, such as WAV"
    )
