"""The conversation: input, slash commands, turns. Text only; ids are the engine's business."""
