"""Export of trained students to folders that translate raw text with CTranslate2 or ONNX."""
