"""Under ZeRO-3 a model's classifier is the same as without."""

import pytest
import transformers
from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

from alignment.models.classifiers import body_width, needs_own, why_no_scores

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


@pytest.fixture
def zero3():
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    yield config  # transformers keeps a weak reference
    unset_hf_deepspeed_config()


@pytest.mark.parametrize(("kind", "own"), [("llama", False), ("qwen2", False), ("cohere", True)])
def test_transformers_classifier_is_taken_where_there_is_one(zero3, kind, own):
    """A Llama's was not, and its reward models were published as of a class that plain transformers does not have."""
    config = transformers.AutoConfig.for_model(kind, **SIZES)
    config.architectures = [transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    assert needs_own(config) is own
    assert why_no_scores(config) is None
    assert body_width(config) == 32
