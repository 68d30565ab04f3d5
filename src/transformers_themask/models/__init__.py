# SPDX-License-Identifier: Apache-2.0
"""The models, one flat folder: every file imports only its siblings, torch, scipy and transformers."""
