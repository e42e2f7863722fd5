"""What lies on disk, as a manifest: catalog, adapters, index."""
