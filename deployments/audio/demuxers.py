"""Which of FFmpeg's demuxers may read a caller's file.

The rule: every demuxer of PyAV's builds that can give sound and reads nothing but the file it is
given. An allow-list, because FFmpeg also knows playlists and session descriptions (hls, concat,
sdp, image2) and formats in several files (mlv, vobsub) that make it open the files and URLs that
they name. Raw PCM is left out as well: it has no header to know it by. A test names every demuxer
that is left out, with its reason, and fails where PyAV brings one that stands on neither side.
"""

_AUDIO_FILES = (
    "aa aac aax ace acm aea aiff ape ast au avr bonk caf dsf dss epaf flac fsb genh hca hcom iff"
    " ircam laf loas mca mmf mp3 mpc mpc8 msf mtaf musx nistsphere nsp oma osq pvf qcp qoa"
    " redspark rka rso scd sds sdx sox svag svs tak tta vag voc vpk vqf w64 wady wav wavarc wsd wv"
    " wve xvag xwma"
)
# Some of these streams of one codec have no header and are known by the name of the file alone.
_CODEC_STREAMS = (
    "ac3 ac4 act adp adx alaw amr amrnb amrwb apac apc apm aptx aptx_hd bit codec2 daud dfpwm dts"
    " dtshd eac3 g722 g723_1 g726 g726le g728 g729 gsm ilbc lc3 mlp mulaw s337m sbc shn sln spdif"
    " truehd"
)
_VIDEO_FILES = (
    "asf asf_o avi dhav dv flv gxf hxvs ifv ivr kux lmlm4 live_flv luodat lvf lxf matroska moflex"
    " mov mpeg mpegts msnwctcp mtv mxf mxg nsv nut nuv ogg pmp pva r3d rm rpl simbiosis_imx smjpeg"
    " swf ty vivo wtv"
)
_GAME_FILES = (
    "3dostr 4xm ads afc aix alp argo_asf argo_brp argo_cvg avs bethsoftvid bfi bfstm bink binka"
    " bmv boa brstm c93 cdxl dcstr derf dsicin dxa ea ea_cdata film_cpk fwse gdv hnm idcin ipmovie"
    " iss jv kvag mgsts mm mods mv mvi paf pp_bnk psxstr rl2 roq rsd sdns sga siff smk smush sol"
    " thp tiertexseq tmv usm vividas vmd wc3movie wsaud wsvqa xa xmd xmv yop"
)
DEMUXERS = f"{_AUDIO_FILES} {_CODEC_STREAMS} {_VIDEO_FILES} {_GAME_FILES}".split()
