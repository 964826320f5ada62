"""File formats of weights, and the parameter names of other libraries.

Formats: .safetensors, .npz and PyTorch's .pth (.pt, .bin). The names in a file decide how it is
read:

- timm: DeiT, ViT, DeiT with two heads (`deit_*_distilled_*`); with or without a position of the
  class token. Positions are resized as in timm.
- big_vision, vision_transformer (.npz): ViT with a class token. Positions are resized as there.
  Their GELU is the tanh approximation; here, as in timm, it is exact.
- released PRANCE: the meta-network; actor and critic by the command `convert`. Loading a
  meta-network implies `ModelSpec.official`, unless the caller sets other values.
- names of this package: any network.
"""
