"""Accuracy of ONNX files, before and after `prunella prune model.onnx`.

PRUNELLA_DATA=../shared/data python -m benchmarks.onnx_files
"""
