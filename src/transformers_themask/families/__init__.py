# SPDX-License-Identifier: Apache-2.0
"""One file per model family: its row in the registry, and the key map of its official checkpoints."""
