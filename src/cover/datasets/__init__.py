"""From what lies on disk to manifests."""
