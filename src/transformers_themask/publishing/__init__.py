# SPDX-License-Identifier: Apache-2.0
"""What goes with a model to others: the file of its results and the model card made from it."""
