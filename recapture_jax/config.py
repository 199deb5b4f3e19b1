"""The configuration of a run: every field with its default, unit and meaning; `validate` refuses bad ones.

Configuration files (`configs/*.py`) start from `default_config(variant)` and change a few fields. Variants:
`small` (the shipped prior), `smoke` (the same, a few steps), `svd` and `svd_xt` (converted weights).

    python -m recapture_jax.config [VARIANT]     lists them
"""

import difflib
import inspect
import math
import pathlib
import re
import sys

import ml_collections

from recapture_jax.camera import formats, moves, timing, trajectory
from recapture_jax.diffusion import edm
from recapture_jax.errors import InputError
from recapture_jax.lora import targets

VARIANTS = ("small", "smoke", "svd", "svd_xt")
BUNDLED = "bundled:"  # prefix of paths that mean a file shipped with the package


def default_config(variant: str | None = None) -> ml_collections.ConfigDict:
    """All fields of a run.

    Args:
      variant: one of `VARIANTS`; None is `small`.

    Raises:
      InputError: for an unknown variant.
    """
    variant = variant or "small"
    if variant not in VARIANTS:
        raise InputError(f"variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    config = ml_collections.ConfigDict()
    config.variant = variant
    config.seed = 0  # of everything random

    config.video = video = ml_collections.ConfigDict()
    video.path = BUNDLED + "clip/cockatoo.mp4"  # a video file or a folder of images
    video.start = 0  # first frame used
    video.stride = 1  # take every n-th frame
    video.num_frames = 0  # 0: what the model was trained on
    video.short_side = 96  # pixels of the shorter side the model works at
    video.multiple = 32  # both sides become multiples of this; edges are cropped, nothing squashed

    config.camera = camera = ml_collections.ConfigDict()
    camera.moves = "static"  # the move language of camera/moves.py
    camera.time = ""  # which source frame is seen when, as "freeze 6"; camera/timing.py
    camera.intrinsics = ""  # the source's lens: 'f', 'fx fy cx cy' (pixels of the video) or '60deg'
    camera.vertical_fov = 0.0  # degrees; 0: as poses, depth folder or metadata say, else 40
    camera.pivot_depth = 0.0  # 0: median depth of the centre of frame 0
    camera.path = ""  # a camera file instead of moves; see `recapture_jax.camera.validate`
    camera.path_format = ""  # '': told from the content; or such as "recammaster camera=cam03"
    camera.path_scale = 0.0  # depth units per unit of the file; 0: as its units say
    camera.path_world = "source"  # it starts from the source camera; poses: it is in their world
    camera.poses = ""  # the source camera's own poses, where it moves
    camera.poses_format = ""  # as path_format
    camera.poses_scale = 0.0  # as path_scale
    camera.mode = "relative"  # to the source camera of each frame; absolute or stabilise need poses
    camera.stabilise = 6.0  # frames, width of the smoothing of mode 'stabilise'

    config.depth = depth = ml_collections.ConfigDict()
    depth.estimator = "fastdepth"  # or 'converted' or 'precomputed'
    depth.path = ""  # folder of converters.depth; precomputed: see depth/files.py, folders.py
    depth.kind = "metric"  # precomputed: metric, relative or disparity
    depth.scale = 1.0  # precomputed: stored value times this is depth (metres if metric)
    depth.encoding = "uint16"  # precomputed PNG: uint16 or float16_bits
    depth.channel = ""  # precomputed EXR; '': the one called Z or depth, or the only one
    depth.near = 1.0  # metres, of the largest disparity; both 0: disparity is exactly 1 / depth
    depth.far = 20.0  # metres, of the smallest
    depth.sky_mask = ""  # PNGs or an array, not 0 in the sky; besides what depth/sky.py finds
    depth.sky_beyond = 50.0  # sky is beyond so many lower quartiles of depth; 0: no such rule
    depth.sky_depth = 1000.0  # median depths at which the sky is put
    depth.stabilise = True  # even out scale and flicker over the clip

    config.anchor = anchor = ml_collections.ConfigDict()
    anchor.taps = 4  # largest splat window, 2*taps pixels; 4 covers magnification up to 7
    anchor.tau = 0.02  # relative depth tolerance of the splat
    anchor.tearing = 0.05  # no colour from where depth varies more over 5x5 pixels (at 576 px)
    anchor.close = 3  # close holes narrower than this many pixels
    anchor.erode = 2  # pixels taken off the known region at holes

    config.model = model = ml_collections.ConfigDict()
    model.path = BUNDLED + "prior_small"  # or a folder written by converters.svd
    model.dtype = "auto"  # float32 on CPU, bfloat16 on accelerators
    model.attention = "auto"  # or xla, chunked, cudnn (GPUs), flash (TPUs); models/attention.py
    model.remat = "auto"  # none, dots or full; auto: the fastest that fits, see preflight.py
    model.offload = "auto"  # weights wait in main memory: never, always; auto: where they must
    model.window = 0  # frames seen at once, longer clips in windows; 0: what it was trained on
    model.window_overlap = 0  # frames that neighbouring windows share; 0: two fifths of a window

    config.lora = lora = ml_collections.ConfigDict()
    lora.rank = 16  # of both LoRAs
    lora.spatial_targets = "spatial"  # layers by name; see lora/targets.py
    lora.temporal_targets = "temporal"  # likewise

    config.tune = tune = ml_collections.ConfigDict()
    tune.steps = 400  # of each LoRA
    tune.learning_rate = 5e-4  # of AdamW
    tune.spatial_seed = -1  # of a spatial LoRA that other seeds share; -1: the run's own
    tune.spatial_rate = 1.0  # of the spatial LoRA, as a share of learning_rate
    tune.weight_decay = 1e-2  # of AdamW
    tune.schedule = "spatial_first"  # or 'joint', see tuning/loop.py
    tune.loss = "v"  # v: masked v-space MSE; eps: the paper's literal form
    tune.known = "all"  # a latent is known if all its pixels are; any: one; share: counts by share
    tune.temporal_weight = 1.0  # of the masked loss; 0: no temporal LoRA
    tune.spatial_weight = 1.0  # of the loss on source frames; 0: no spatial LoRA
    tune.sigma_mean = 0.7  # of ln sigma, the noise levels that are trained
    tune.sigma_std = 1.6  # of ln sigma
    tune.draws = 1  # noise draws of the anchor in one temporal step, spread over the mesh
    tune.frames_per_step = 1  # source frames in one spatial step, likewise
    tune.window = 1  # a temporal step sees one part in so many of each side; 1: whole frames
    tune.spatial_condition = "first"  # image of a spatial step: first or this frame, or none
    tune.augment = True  # random crops and flips of the source frames
    tune.checkpoint_every = 100  # steps

    config.generate = generate = ml_collections.ConfigDict()
    generate.steps = 25  # of the sampler
    generate.sigma_min = 0.002  # lowest noise level; from there the denoised estimate is the result
    generate.min_guidance = 1.0  # of the first frame; 1: none
    generate.max_guidance = 3.0  # of the last frame; linear between them
    generate.fps = 7  # the id the model is told; the result keeps the fps of the clip
    generate.motion_bucket = 127  # how much motion the model is told, 0 to 255
    generate.noise_aug = 0.02  # noise on the image that the model is shown
    generate.sdedit_sigma = 1.0  # noise level at which SDEdit begins; 0: none
    generate.sdedit_steps = 8  # of SDEdit
    generate.known_weight = 0.0  # pull towards the anchor where it is known; 1: all the way
    generate.known_sigma_min = 1.0  # noise level below which the sampler is free again
    generate.keep_pixels = False  # the result has the anchor's own pixels where it is known
    generate.guidance_passes = "auto"  # together or apart (half the memory); auto: what fits
    generate.decode_chunk = 0  # frames decoded at once; 0: all

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # devices over the noise draws of a step; -1: all that are left
    mesh.fsdp = 1  # devices that share the frozen weights
    mesh.frames = 1  # devices that share the frames of a clip

    config.output = output = ml_collections.ConfigDict()
    output.root = "outputs"  # folder of all runs
    output.name = ""  # '': <clip>-<move>-<time>
    output.cache = ""  # '': <root>/cache
    output.compilation_cache = True  # keep compiled programs on disk
    output.fast_compile = False  # XLA optimises less: quicker to compile, slower to run

    if variant in ("small", "smoke"):
        tune.steps, tune.window = 150, 2  # half a minute each on two CPU cores; 400 is the paper's
        tune.learning_rate, tune.spatial_rate = 2e-3, 0.25
        tune.spatial_condition = "frame"
        tune.checkpoint_every = 50
        generate.motion_bucket = 40  # most of its training clips lie below
        generate.max_guidance = 1.0  # guidance shifts this prior's colours
        generate.known_weight, generate.known_sigma_min = 1.0, 0.3  # it is too weak to do without
        generate.keep_pixels = True
        generate.steps, generate.sigma_min = 2, 2.0  # more steps or lower levels add grain
        generate.sdedit_steps = 1
    if variant == "smoke":
        video.num_frames = 4
        tune.steps, tune.checkpoint_every = 4, 2
        tune.augment = False
        generate.steps, generate.sdedit_steps = 3, 1
        output.fast_compile = True  # most of its time is compilation
    if variant in ("svd", "svd_xt"):
        video.short_side, video.multiple = 576, 64
        model.path = f"weights/{variant}"
        generate.max_guidance = 2.5 if variant == "svd" else 3.0
        generate.decode_chunk = 7
    return config


def described(variant: str | None = None) -> str:
    """Every field with a variant's default and its meaning, the comment above, a line each.

    Raises:
      InputError: for an unknown variant.
    """
    config = default_config(variant)
    said = re.findall(r"^ {4}(\w+\.\w+) = .*?  # (.+)$", inspect.getsource(default_config), re.M)
    fields = [(name.removeprefix("config."), meaning) for name, meaning in said]
    shown = [(f"--config.{name}={get(config, name)}", meaning) for name, meaning in fields]
    return "\n".join(f"{field:<46} {meaning}" for field, meaning in shown)


_CHOICES = {
    "camera.mode": trajectory.MODES,
    "camera.path_world": ("source", "poses"),
    "depth.estimator": ("fastdepth", "converted", "precomputed"),
    "depth.kind": ("metric", "relative", "disparity"),
    "depth.encoding": ("uint16", "float16_bits"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.attention": ("auto", "xla", "chunked", "cudnn", "flash"),
    "model.remat": ("auto", "none", "full", "dots"),
    "model.offload": ("auto", "never", "always"),
    "tune.schedule": ("spatial_first", "joint"),
    "tune.loss": ("v", "eps"),
    "tune.known": ("all", "any", "share"),
    "tune.spatial_condition": ("first", "frame", "none"),
    "generate.guidance_passes": ("auto", "together", "apart"),
}
# Smallest and largest allowed value.
_RANGES = {
    "seed": (0, 2**31 - 1),
    "video.start": (0, math.inf),
    "video.stride": (1, math.inf),
    "video.num_frames": (0, math.inf),
    "video.short_side": (16, 4096),
    "video.multiple": (8, 256),
    "camera.vertical_fov": (0.0, 170.0),
    "camera.pivot_depth": (0.0, math.inf),
    "camera.path_scale": (0.0, math.inf),
    "camera.poses_scale": (0.0, math.inf),
    "camera.stabilise": (1e-3, 1e4),
    "depth.scale": (1e-9, math.inf),
    "depth.near": (0.0, math.inf),
    "depth.far": (0.0, math.inf),
    "depth.sky_beyond": (0.0, math.inf),
    "depth.sky_depth": (1.0, math.inf),
    "anchor.taps": (1, 4),
    "anchor.tau": (0.0, 1.0),
    "anchor.tearing": (0.0, math.inf),
    "anchor.close": (0, 16),
    "anchor.erode": (0, 64),
    "model.window": (0, 4096),
    "model.window_overlap": (0, 4096),
    "lora.rank": (1, 1024),
    "tune.steps": (1, 10**7),
    "tune.learning_rate": (0.0, 1.0),
    "tune.spatial_seed": (-1, 2**31 - 1),
    "tune.spatial_rate": (0.0, 1.0),
    "tune.weight_decay": (0.0, 1.0),
    "tune.temporal_weight": (0.0, math.inf),
    "tune.spatial_weight": (0.0, math.inf),
    "tune.sigma_mean": (-20.0, 20.0),
    "tune.sigma_std": (1e-6, 20.0),
    "tune.draws": (1, 4096),
    "tune.frames_per_step": (1, 4096),
    "tune.window": (1, 16),
    "tune.checkpoint_every": (1, 10**7),
    "generate.steps": (1, 1000),
    "generate.sigma_min": (1e-4, 100.0),
    "generate.min_guidance": (0.0, 100.0),
    "generate.max_guidance": (0.0, 100.0),
    "generate.fps": (1, 240),
    "generate.motion_bucket": (0, 255),
    "generate.noise_aug": (0.0, 10.0),
    "generate.sdedit_sigma": (0.0, 700.0),
    "generate.sdedit_steps": (1, 1000),
    "generate.known_weight": (0.0, 1.0),
    "generate.known_sigma_min": (0.0, math.inf),
    "generate.decode_chunk": (0, 4096),
    "mesh.data": (-1, 10**6),
    "mesh.fsdp": (1, 10**6),
    "mesh.frames": (1, 10**6),
}


def get(config: ml_collections.ConfigDict, field: str):
    """`config.a.b` from "a.b"."""
    value = config
    for name in field.split("."):
        value = value[name]
    return value


def validate(config: ml_collections.ConfigDict) -> None:
    """Refuses a bad configuration before any work.

    Raises:
      InputError: one line with the field, its value and what is allowed.
    """
    for field, allowed in _CHOICES.items():
        value = get(config, field)
        if value not in allowed:
            close = difflib.get_close_matches(str(value), allowed, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(
                f"config.{field}={value!r}: expected one of {', '.join(allowed)}{hint}"
            )
    for field, (low, high) in _RANGES.items():
        value = get(config, field)
        if not math.isfinite(value) or not low <= value <= high:
            raise InputError(f"config.{field}={value}: expected a number from {low} to {high}")
    if config.generate.min_guidance > config.generate.max_guidance:
        raise InputError(
            f"config.generate.min_guidance={config.generate.min_guidance} is above max_guidance="
            f"{config.generate.max_guidance}: it is the guidance of frame 0, the other that of the last"
        )
    if 0 < config.generate.sdedit_sigma <= edm.SIGMA_MIN:
        raise InputError(
            f"config.generate.sdedit_sigma={config.generate.sdedit_sigma}: expected a noise level above "
            f"{edm.SIGMA_MIN}, where the sampler ends, or 0 for no SDEdit"
        )
    if config.mesh.data == 0:
        raise InputError("config.mesh.data=0: expected a number of devices, or -1 for all")
    if config.depth.estimator != "fastdepth" and not config.depth.path:
        raise InputError(
            f"config.depth.path is empty: --config.depth.estimator={config.depth.estimator} needs "
            "the depth file or the folder of the converted network"
        )
    depth = config.depth
    if not (0 < depth.near < depth.far or depth.near == depth.far == 0):
        raise InputError(
            f"config.depth.near={depth.near}, far={depth.far}: expected 0 < near < far in metres, or "
            "both 0 for disparity that is exactly 1 / depth"
        )
    if 0 < depth.sky_beyond <= 1:
        raise InputError(
            f"config.depth.sky_beyond={depth.sky_beyond}: expected more than 1 (times the lower "
            "quartile of the depth), or 0 to look for no sky that way"
        )
    moves.parse_moves(config.camera.moves)
    if config.camera.time:
        timing.parse_time(config.camera.time)
    for name in ("path", "poses"):
        formats.parse_format(config.camera[f"{name}_format"])
        if config.camera[f"{name}_scale"] and not config.camera[name]:
            raise InputError(
                f"config.camera.{name}_scale is given without config.camera.{name}: expected the file "
                "whose unit it is"
            )
    camera = config.camera
    shared = camera.path and camera.poses and camera.mode == "absolute" and not camera.path_scale
    if camera.path_world == "poses" and not shared:
        raise InputError(
            "config.camera.path_world=poses: expected camera.path and camera.poses, two files of one "
            "world, with camera.mode=absolute and one scale for both, camera.poses_scale"
        )
    targets.patterns(config.lora.spatial_targets)
    targets.patterns(config.lora.temporal_targets)
    if not config.video.path:
        raise InputError("config.video.path is empty: give --config.video.path=CLIP.mp4")


def resolve_path(path: str) -> pathlib.Path:
    """A user's path, or a file of the package for `bundled:NAME`."""
    if path.startswith(BUNDLED):
        from recapture_jax.assets import asset_path

        return asset_path(path[len(BUNDLED) :])
    return pathlib.Path(path).expanduser()


if __name__ == "__main__":
    from recapture_jax import terminal

    sys.exit(terminal.finish(lambda: described(*sys.argv[1:2])))
