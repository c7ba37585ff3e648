"""One network of every family of timm: the smallest of each of its modules."""

import timm
from timm.models import _registry

from benchmarks.zoo.network import Network, image

NAMES = (
    "beit_base_patch16_224 halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny "
    "convmixer_768_32 convnext_zepto_rms cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s "
    "cspnext_tiny davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b "
    "edgenext_xx_small efficientformer_l1 efficientformerv2_s0 mobilenetv2_035 efficientvim_m1 "
    "efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 "
    "focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 "
    "hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto "
    "inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 "
    "mambaout_femto maxvit_pico_rw_256 poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050 "
    "mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge "
    "nest_tiny nextvit_small nf_regnet_b0 pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m "
    "rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t resnetv2_18 "
    "rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 "
    "swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window16_256 swinv2_cr_tiny_224 "
    "tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny "
    "vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_srelpos_small_patch16_224 "
    "samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception "
    "xception41p xcit_nano_12_p8_224"
).split()
"""The smallest of every module of timm 1.0.31; modules that came later are added by `names`."""

SIZES = {
    "convmixer_768_32": 112,
    "deepseek_vit_412m": 168,
    "gemma4_vit_167m": 192,
    "inception_resnet_v2": 192,
    "inception_v4": 192,
    "mobilenetv5_base": 128,
    "naflexvit_base_patch16_parfac_gap": 128,
    "nasnetalarge": 128,
    "pnasnet5large": 128,
    "qwen3_vit_88m": 192,
    "sam2_hiera_tiny": 256,
}
"""Side of the images of networks that take a smaller one than they were made for."""


def names() -> list[str]:
    """List one network of each module: the fixed list, and the first of every module not in it."""
    homes = _registry._model_to_module
    known = {homes.get(name) for name in NAMES}
    later = [timm.list_models(module=module)[:1] for module in timm.list_modules()
             if module not in known]  # fmt: skip
    return [*NAMES, *(name for found in later for name in found)]


def network(name: str) -> Network:
    """Build a network of the list."""
    model = timm.create_model(name, pretrained=False)
    size = SIZES.get(name, model.default_cfg["input_size"][-1])
    return Network(model, image(size))
