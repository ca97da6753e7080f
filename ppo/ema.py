
class EMA: pass
