"""Sizes of the small prior: the classes of Stable Video Diffusion, about 7 M parameters."""

NUM_FRAMES, HEIGHT, WIDTH, FPS = 14, 96, 160, 7

# Attention at the 12x20 level and in the middle only: the 24x40 level is cheap and convolutional.
_DOWN = ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")
_UP = ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal")

# The principal components of 4x4 patches of rendered scenes and photographs: luminance, two chroma axes, two slopes
# and three finer ones leave 32 dB; four leave 27 and no red against green.
LATENT_CHANNELS = 8

# SVD's 32 groups on 32 channels would be instance norm: every channel's mean, the colour of a frame, is lost.
NORM_GROUPS = 8

CONFIG = {
    "name": "prior_small",
    "num_frames": NUM_FRAMES,
    "unet": {
        "in_channels": 2 * LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "down_block_types": _DOWN,
        "up_block_types": _UP,
        "block_out_channels": (32, 64, 160),
        "num_attention_heads": (1, 2, 5),
        "layers_per_block": 1,
        "cross_attention_dim": 128,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
        "num_frames": NUM_FRAMES,
        "groupnorm_eps": "stability",
        "norm_num_groups": NORM_GROUPS,
    },
    "vae": {
        "block_out_channels": (32, 32, 96),
        "layers_per_block": 1,
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": NORM_GROUPS,
        "scaling_factor": 1.0,  # replaced by 1 / std of the trained latents
    },
    "image_encoder": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 16,
        "projection_dim": 128,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    },
}
