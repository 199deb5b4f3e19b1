"""A whole run, image to frames, against diffusers' StableVideoDiffusionPipeline, float32.

Random weights, 25 Karras steps, guidance 1 to 3 over the frames, the same starting noise and
augmentation noise on both sides; ours with precomputed tables, as the generate stage samples.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from jax.tree_util import Partial

from recapture_jax.diffusion.guidance import doubled, guidance_ramp
from recapture_jax.diffusion.karras import karras_sigmas
from recapture_jax.diffusion.sampling import sample_steps, start_from_noise
from recapture_jax.models import zoo
from recapture_jax.stages.video_model import VideoModel

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
from diffusers.pipelines.stable_video_diffusion import (  # noqa: E402
    pipeline_stable_video_diffusion as svd_pipeline,
)
from torch_params import SCHEDULER, flax_from_torch, randomise, rel_error  # noqa: E402

# 3e-6 measured. Single steps agree to 1e-6 only: diffusers' form of Euler rounds more than ours.
TOLERANCE = 2e-5
FRAMES, HEIGHT, WIDTH, STEPS = 3, 32, 48, 25
UNET = dict(
    in_channels=8,
    out_channels=4,
    down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
    up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    num_attention_heads=(2, 4, 4),
    cross_attention_dim=32,
    addition_time_embed_dim=32,
    projection_class_embeddings_input_dim=96,
    num_frames=FRAMES,
)
VAE = dict(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    latent_channels=4,
    scaling_factor=0.18215,
    down_block_types=("DownEncoderBlock2D",) * 3,
)
CLIP = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=224,  # the size the pipeline resizes to
    patch_size=32,
    projection_dim=32,
    layer_norm_eps=1e-5,
    hidden_act="gelu",
)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    clip = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIP))
    pipe = svd_pipeline.StableVideoDiffusionPipeline(
        vae=randomise(diffusers.AutoencoderKLTemporalDecoder(**VAE), seed=1),
        image_encoder=randomise(clip, seed=2),
        unet=randomise(diffusers.UNetSpatioTemporalConditionModel(**UNET), seed=3),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER),
        feature_extractor=transformers.CLIPImageProcessor(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(pipe):
    config = {"unet": UNET, "vae": VAE, "image_encoder": CLIP, "num_frames": FRAMES}
    params = {name: flax_from_torch(getattr(pipe, name)) for name in zoo.COMPONENTS}
    return VideoModel(zoo.build(config), jax.tree.map(jnp.asarray, params), config)


@pytest.fixture(scope="module")
def request_():
    """What both sides are asked for; the image is bytes, so that neither rounds it."""
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    noise = rng.standard_normal((1, FRAMES, HEIGHT // 4, WIDTH // 4, 4), dtype=np.float32)
    return {
        "image": coarse.resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC),
        "key": jax.random.key(7),  # of the augmentation noise
        "noise_aug": 0.1,
        "fps": 11,
        "motion_bucket": 90,
        "noise": noise,
    }


@pytest.fixture(scope="module")
def theirs(pipe, request_):
    """Latents `[1, T, h, w, 4]` and frames `[T, H, W, 3]` of diffusers' own pipeline."""
    drawn = jax.random.normal(request_["key"], (HEIGHT, WIDTH, 3))  # VideoModel.condition's noise
    drawn = torch.from_numpy(np.array(drawn)).permute(2, 0, 1)[None]

    def fixed(shape, **_):
        assert tuple(shape) == tuple(drawn.shape)
        return drawn

    def run(output_type):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(svd_pipeline, "randn_tensor", fixed)
            return pipe(
                request_["image"],
                height=HEIGHT,
                width=WIDTH,
                num_frames=FRAMES,
                num_inference_steps=STEPS,
                min_guidance_scale=1.0,
                max_guidance_scale=3.0,
                fps=request_["fps"],
                motion_bucket_id=request_["motion_bucket"],
                noise_aug_strength=request_["noise_aug"],
                latents=torch.from_numpy(request_["noise"]).permute(0, 1, 4, 2, 3),
                output_type=output_type,
            ).frames

    latents = run("latent")
    with torch.no_grad():
        frames = pipe.decode_latents(latents, FRAMES, FRAMES)
    frames = pipe.video_processor.postprocess_video(frames, output_type="np")[0]
    return latents.permute(0, 1, 3, 4, 2).numpy(), frames


@pytest.fixture(scope="module")
def cond(model, request_):
    image = jnp.asarray(np.asarray(request_["image"], np.float32) / 255.0)
    options = {name: request_[name] for name in ("fps", "motion_bucket", "noise_aug", "key")}
    return model.condition(image, FRAMES, **options)


def sample(model, cond, noise):
    sigmas = karras_sigmas(STEPS)
    params = model.params["unet"]
    denoise = Partial(model.sampling_denoiser(), params, model.tables(params, doubled(cond)))
    x = start_from_noise(jnp.asarray(noise), sigmas[0])
    return sample_steps(denoise, x, sigmas, cond, guidance=guidance_ramp(1.0, 3.0, FRAMES))


def test_whole_run_matches_the_pipeline(model, theirs, cond, request_):
    latents, frames = theirs
    ours = sample(model, cond, request_["noise"])
    errors = rel_error(ours, latents), rel_error(model.decode(ours[0], FRAMES), frames)
    print(f"\nlatents {errors[0]:.1e}, frames {errors[1]:.1e}")
    assert max(errors) <= TOLERANCE
    assert frames.std() > 0.05 and 0.05 < (np.abs(frames - 0.5) < 0.5).mean()  # not all clipped


def test_the_conditioning_matters_to_the_result(model, theirs, cond, request_):
    """Else the test above would pass with it broken: each part alone shows above the tolerance."""
    for name, scale in (("context", 1.1), ("latents", 1.1), ("added_time_ids", 1.02)):
        changed = dataclasses.replace(cond, **{name: getattr(cond, name) * scale})
        assert rel_error(sample(model, changed, request_["noise"]), theirs[0]) > 10 * TOLERANCE
