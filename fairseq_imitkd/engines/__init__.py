"""What translates: fairseq models, CTranslate2 and ONNX, behind one interface."""
