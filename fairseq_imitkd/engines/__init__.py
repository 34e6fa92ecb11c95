"""Inference engines behind one interface: fairseq, CTranslate2 and ONNX Runtime."""
