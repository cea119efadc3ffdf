"""How stages run (`constrain`, `cut_units`, `learn_units`), where a run stands (`state`), and what came out (`compressed`)."""
