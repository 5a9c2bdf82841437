"""A trained network in the formats of other programs: ONNX, Caffe."""
