# SPDX-License-Identifier: Apache-2.0
"""Learning: arguments, recipes, the trainer and evaluation on whole videos."""
