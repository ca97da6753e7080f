class EMA:
    pass
