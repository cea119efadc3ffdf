"""How stages run (`constrain`, `cut_units`, `drop_blocks`, `learn_units`), where a run stands (`state`), what came out
(`compressed`)."""
