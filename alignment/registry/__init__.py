"""The model registry: immutable versions of models, aliases for them, and where each came from.

registry = Registry()                                   # ALIGNMENT_REGISTRY or ./registry
version = registry.publish("help-desk-sft", folder, stage="sft", role="policy", ...)
policy = registry.load("help-desk-sft@v1", role="policy")
AutoModelForCausalLM.from_pretrained(policy.path)
"""

from __future__ import annotations

from alignment.registry.aliases import ANY
from alignment.registry.errors import RegistryError
from alignment.registry.lineage import LineageEdge, LineageNode, render_lineage
from alignment.registry.manifest import DataFingerprint, Manifest, Parent
from alignment.registry.store import Registry
from alignment.registry.version import Version

__all__ = [
    "ANY",
    "DataFingerprint",
    "LineageEdge",
    "LineageNode",
    "Manifest",
    "Parent",
    "Registry",
    "RegistryError",
    "Version",
    "render_lineage",
]
