# SPDX-License-Identifier: Apache-2.0
"""Result files of evaluations and the model cards made from them."""
