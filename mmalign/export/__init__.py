"""A trained model as a folder that others can load: safetensors, JSON and a model card; nothing in it is ever run."""
