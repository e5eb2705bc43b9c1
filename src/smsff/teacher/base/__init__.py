"""The base model: families of pipelines, folders, hub ids and single files."""
