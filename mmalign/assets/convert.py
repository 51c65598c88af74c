"""Steps between what a source serves and what the code loads."""

from pathlib import Path


def gguf_to_safetensors(folder: Path) -> str:
    """De-quantises the one GGUF file of `folder` with transformers and replaces it by safetensors and a tokenizer.

    Done once because it takes tens of seconds. Weights are stored in float32, so that nothing is rounded a second time.

    Raises:
        ImportError: the `gguf` package is missing.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError("converting a GGUF file needs the gguf package: pip install 'mmalign[gguf]'") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = next(folder.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=source.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A model that came out of a GGUF file refuses to be saved; the same weights in a fresh model do not.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source.unlink()
    return ""
