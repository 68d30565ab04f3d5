# SPDX-License-Identifier: Apache-2.0
"""The steps around a model of MVC (Liang et al., PVUW 2024): test-time augmentation, aggregation, correction."""
