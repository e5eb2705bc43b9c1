"""Style LoRAs: file formats, names of layers, loading, switching, writing."""
