"""Relevance scores s(query, item): training retrievers and re-rankers, and measuring them."""
