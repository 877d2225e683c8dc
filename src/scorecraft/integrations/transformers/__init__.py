"""transformers: causal language models as judges, and trainers of its own kind."""

from scorecraft.integrations.transformers.causal_judge import PROMPT, CausalLMJudge

__all__ = ["PROMPT", "CausalLMJudge"]
