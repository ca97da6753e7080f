"""Models from elsewhere into the registry: Hugging Face folders, adapters, GGUF files."""
