"""Backbones by name: one file a family of networks."""
