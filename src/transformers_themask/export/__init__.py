# SPDX-License-Identifier: Apache-2.0
"""Models as graphs for torch.export and ONNX."""
